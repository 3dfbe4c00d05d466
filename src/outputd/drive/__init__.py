"""Where waiting is done: try a tree operation, load what it lacks, try again; move a file's bytes."""
