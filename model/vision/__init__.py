"""What looks at images beside a model: IP-Adapters, and the safety checker."""
