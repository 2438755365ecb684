"""Networks that diffusers and transformers define, and this package only traces: their classes, built from configs."""
