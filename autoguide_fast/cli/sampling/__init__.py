"""What `autoguide-fast sample` does: a job, its folder, the file made of that, and its manifest."""
