"""What people write down beside a store's results."""
