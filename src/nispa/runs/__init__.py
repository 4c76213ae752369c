"""One run: tasks go to a method, and what comes of it goes to a folder."""
