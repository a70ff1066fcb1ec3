"""The command line, doctor, tour and Colab. Imports everything; nothing imports it."""
