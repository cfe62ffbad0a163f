"""From folders of videos to clips that a network can be trained on."""
