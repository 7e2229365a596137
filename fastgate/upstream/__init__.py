"""The upstream side: connections, pools, health, discovery."""
