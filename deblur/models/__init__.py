"""The networks: generators that restore, critics that judge, VGG features that compare."""
