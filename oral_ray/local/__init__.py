"""What this machine keeps and reads by itself: packages that are fetched, Parquet files."""
