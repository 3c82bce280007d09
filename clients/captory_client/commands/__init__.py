"""The subcommands that this package brings. Each imports what it needs when it is called."""
