"""What is trained: the tasks, the shapes of their networks, and the tokenizer of the text."""
