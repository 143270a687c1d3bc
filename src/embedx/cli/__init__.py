"""The command line: argv and TOML to specs, steps to reports, errors to exit statuses."""
