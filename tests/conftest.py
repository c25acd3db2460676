"""What all tests find, wherever they are started from."""

import signal

# a shell without job control has what it starts in the background ignore Ctrl-C, children included
signal.signal(signal.SIGINT, signal.default_int_handler)
