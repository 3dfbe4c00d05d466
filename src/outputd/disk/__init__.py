"""The only rooms that open, rename or sync for durable state; what a crash leaves behind is decided here and nowhere else."""
