"""The console command ``retinanet-ext``: `main` dispatches, each verb has its own file."""
