"""The promises about answers, for shapes of data: never short, and the recall that was asked for.

Everything here sees the engine as a caller does. It must not enter how an index gets there.
"""
