"""Read prompts in the syntaxes that other programs made common: weights, alternatives, schedules."""
