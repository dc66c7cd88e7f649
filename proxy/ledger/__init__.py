"""What happened to money: entries, their states, balances. Plain functions, no await, no IO."""
