"""What nets learn from: cut once, kept on disk, moved and shaded anew at every look."""
