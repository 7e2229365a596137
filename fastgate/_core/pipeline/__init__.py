"""What one request carries, the plugins it passes, and the timer wheel."""
