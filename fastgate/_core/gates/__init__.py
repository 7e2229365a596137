"""The compiled gates of the features: the steps that a request passes before it goes upstream."""
