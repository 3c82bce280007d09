"""MLPerf's scenarios, and more load than can be done."""
