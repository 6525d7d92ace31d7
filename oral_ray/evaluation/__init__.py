"""Arms, scores, statistics, reports."""
