"""What is kept in the object store, and how it is committed."""
