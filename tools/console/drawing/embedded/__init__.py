"""What is written into the file of an image about its making, by this program and by others."""
