"""The command line: arguments in, exit codes out. Never decides anything that another room could."""
