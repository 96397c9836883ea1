"""What the command line calls: one typed function per command, by theme."""
