"""What commands do on a terminal: progress, tables, files written, signals."""
