"""What a call consumed and what that costs. Pure: no IO, no clock."""
