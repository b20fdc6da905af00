"""What people look at: the figures of a study and its report."""
