"""The subcommands of `unimrseg`, one module each, and `main`, which calls them."""
