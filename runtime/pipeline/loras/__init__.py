"""Apply LoRAs to the networks of a pipeline: which a request asks for, and the weights that they change."""
