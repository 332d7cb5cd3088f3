"""Declares the stranger's plugins."""

from stranger import DiaryFactory, KnockFactory, ListPolicyFactory, PalindromeFactory

knock = KnockFactory()
palindrome = PalindromeFactory()
not_welcome = ListPolicyFactory()
diary = DiaryFactory()
