"""What people look at: the figures of a study, its report and the live app."""
