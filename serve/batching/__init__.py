"""Run the U-Nets of many requests in batches that each request joins and leaves at any row."""
