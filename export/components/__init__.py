"""What is exported: components, their adapters and their symbolic shapes."""
