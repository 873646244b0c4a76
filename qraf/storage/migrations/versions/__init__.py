"""One file per revision, in order; a file that was released never changes."""
