"""What each command does, from checked options to files; shared by the command line and recipes."""
