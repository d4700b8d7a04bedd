"""TFLite Micro on microcontrollers: the firmware folder, and what is known of it on a host."""
