"""What can be proven of the deployment without an account: no network, no credentials, no build."""
