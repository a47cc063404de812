"""Model providers: each speaks to one kind of upstream, and none knows who asks or what it costs."""
