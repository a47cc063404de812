"""Who a caller is: the `auth` step, and the methods that each recognise one kind of credential."""
