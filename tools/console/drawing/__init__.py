"""What commands that make images share."""
