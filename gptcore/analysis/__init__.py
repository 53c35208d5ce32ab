"""What one does with runs and checkpoints after training."""
