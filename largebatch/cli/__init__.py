"""One file per verb. Each has `main(arguments) -> exit code`."""
