"""Score tables -> tables of arms (`tables`), figures (`figures`), the page of a run (`page`). Reads tables only."""
