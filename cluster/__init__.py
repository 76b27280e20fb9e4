"""Where a run happens: storage, checkpoints, ranks and nodes. Knows nothing of what is learned."""
