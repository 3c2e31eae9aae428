"""The same documents asked of us and of other servers, side by side on one machine."""
