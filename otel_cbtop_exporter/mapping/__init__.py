"""SDK data to events: pure, one file for each signal."""
