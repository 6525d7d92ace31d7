"""What every room may use: the base of records, packages that this machine fetches, Parquet files."""
