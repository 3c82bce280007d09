"""The companion offline training module of Captory."""
